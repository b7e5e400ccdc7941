"""sam3label: folders of images and videos in, a training set that survives the trainer out. See `sam3label.api`."""
