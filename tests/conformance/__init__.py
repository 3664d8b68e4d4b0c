"""A conformance set: cases as data, run through the product's own parsers and decisions.

``python -m tests.conformance FOLDER [FILE]`` runs any folder of cases in the form of
``tests/conformance/cases``.
"""
