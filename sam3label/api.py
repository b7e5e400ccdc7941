"""The Python API: the few functions that the command line calls.

    from sam3label.api import LabelOptions, export, label, load_concepts, open_run

    if __name__ == "__main__":  # decoding workers import the script
        concepts = load_concepts("concepts.yaml")
        label(["photos"], concepts, "runs/site-a", LabelOptions(model="demo"))
        with open_run("runs/site-a") as labelled:
            export(labelled, "coco", "datasets/site-a")

Everything raises `sam3label.errors.Sam3LabelError` with a message made for people.
"""

from sam3label.concepts.concept_list import load_concepts
from sam3label.export.write import export
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
from sam3label.run.reader import open_run

__all__ = ["LabelOptions", "export", "label", "load_concepts", "open_run"]
