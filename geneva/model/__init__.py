"""The frozen values that cross the rooms."""
