"""The service: HTTP over `AsyncLLM`. `app.create_app` puts the routers together."""
