"""What is worth a look, and people's corrections there and back.

survey    what the judge of doubt is given: each image as the run holds it, and what only the whole run can tell
reasons   the one judge of doubt: which images are worth a person's hour, and why, in words
labels    a label here <-> a detection there: ids, masks, and how each looked when the two last agreed
merge     pure three-way merge of one label: as last agreed, in the dataset now, in the run now
summary   how good the model was, from the reviewed part
fiftyone/ the only door to FiftyOne: push, pull, connect, schema, samples, folder, playable
"""
