"""The plans' module names; everything is fvcore's."""
