"""Many callers at once: the asynchronous face, a pool of models, and what a server is made of."""
