"""One form of data, one file: each reads what it is given into a `Table`, which `sources` turns into samples."""
