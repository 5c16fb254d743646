"""Files that the commands read rows from and write results to. Needs the extra `score`."""
