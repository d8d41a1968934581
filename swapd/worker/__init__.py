"""What runs in the model's own interpreter: standard library, uvicorn, uvloop and httptools only."""
