"""What a model is: where its parts are, how it is loaded and placed, how it is read and edited."""
