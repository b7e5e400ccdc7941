"""The figures themselves: pure functions over matched truth and answers."""
