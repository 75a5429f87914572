"""What a method has to be told of a model, found by looking at that model (`pronghorn calibrate`), and what
its steps cost on this machine."""
