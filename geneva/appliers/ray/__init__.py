"""Appliers as Ray actors: the only room that imports ray."""
