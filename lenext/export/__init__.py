"""Taking a classifier elsewhere: other runtimes, with the preprocessing inside, replayed on real files."""
