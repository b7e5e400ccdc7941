"""Review: labels go to FiftyOne, people correct them there, and the corrections come back into the run.

    queue     pure, over the store: which images are worth a person's hour, and why, in words
    labels    a label here <-> a detection there: ids, masks, and how each looked when the two last agreed
    samples   one sample's values, shared by `push` (into the database) and `folder` (no database needed)
    schema    the dataset's fields, label schemas, saved views
    push      run -> FiftyOne dataset; again: new media only
    merge     pure three-way merge of one label: as last agreed, in the dataset now, in the run now
    pull      FiftyOne dataset -> human rows in the run's store
    summary   how good the model was, from the reviewed part

Only `connect`, `schema`, `push` and `pull` need FiftyOne, and import it when they run.
"""
