"""What `make bench` runs: inferd, its limit and its peers, measured in one run. Development only, never installed."""
