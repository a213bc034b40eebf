"""What the data is: versions, layers, columns, the recipe, the dataset folder."""
