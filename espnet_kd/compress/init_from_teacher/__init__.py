"""Students that start from the weights of a larger teacher."""
