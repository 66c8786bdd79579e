"""Training: captions and pictures in, a model folder out.

A room imports only from rooms above it in this list; `similarity` and `checked_files` may be imported by all of them:

data          data sets: imported, cleaned, compared, split, encoded
data.world    the world of composed pictures, and the shipped data set
batches       what a step of training is given
loop          settings, steps, checkpoints, log, and the loop itself
judge         the classifier that measures pictures
trainers      the trainers behind one entrance: tokenizer, generator, ranker, refiner, judge
evaluation    measuring a model, and the pages about it
export        runs to a model folder; `refiner_export` adds a refiner to one
"""

__all__ = [
    "batches",
    "checked_files",
    "data",
    "evaluation",
    "export",
    "judge",
    "loop",
    "refiner_export",
    "similarity",
    "trainers",
]
