"""The Python API: the few functions that the command line calls.

    from sam3label.api import RunOptions, export, load_concepts, open_run, run

    if __name__ == "__main__":  # decoding workers import the script
        concepts = load_concepts("concepts.yaml")
        run(["photos"], concepts, "runs/site-a", RunOptions(model="demo"))
        with open_run("runs/site-a") as labelled:
            export(labelled, "coco", "datasets/site-a")

Everything raises `sam3label.errors.Sam3LabelError` with a message made for people.
"""

from sam3label.concepts.concept_list import load_concepts
from sam3label.export.write import export
from sam3label.labelling.job import RunOptions, run
from sam3label.run.reader import open_run

__all__ = ["RunOptions", "export", "load_concepts", "open_run", "run"]
