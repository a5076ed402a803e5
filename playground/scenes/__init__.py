"""Scenes: a drawn benchmark with one question kind for each that the real benchmarks ask.

Contents:
    world       what there is: shapes and signs on a grid of patches, and how a scene is drawn by lot
    picture     a scene as pixels
    questions   what is asked about a scene, with the answers
    files       the benchmark as files, in the formats of the real ones
"""
