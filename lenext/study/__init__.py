"""Studies: controlled comparisons as one command, from the questions to a report with honest statistics."""
