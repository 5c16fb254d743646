"""What the server does, free of any transport: checks a request against its model and hands it to be run."""
