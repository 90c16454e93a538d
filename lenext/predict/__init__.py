"""`lenext predict`: paths, folders, patterns and URLs -> ranked classes, as a table, JSON, CSV or Parquet.

    inputs    what the command was asked about -> pictures, one after the other
    spool     answers so far, kept beside the file to come, so that a killed command can go on
    answers   answers -> a form for people or programs
    gallery   pictures with their answers as titles

Everything is a stream: memory does not grow with the number of pictures.
"""

from lenext.predict.command import run

__all__ = ["run"]
