"""The world of the shipped model: pictograms, composed into pictures with captions that are true."""
