"""The demo: real models replaced behind one address while clients use them. `python -m demo.run`"""
