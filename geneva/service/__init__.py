"""The service: a scheduler, the drivers that it starts, and a REST interface.

Everything here comes with the extra ``service``; `import geneva` loads none of it.
"""
