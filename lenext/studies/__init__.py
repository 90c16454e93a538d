"""The studies that come along, one file each: `lenext study list`."""
