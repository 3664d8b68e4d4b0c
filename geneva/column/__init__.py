"""What a column file is: how it is written, what it says of itself, where its rows came from."""
