"""config.pbtxt: what may stand in it, what it says, and what follows together with the model's file."""
