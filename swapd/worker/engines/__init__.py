"""How each kind of engine loads a model and gives its memory back."""
