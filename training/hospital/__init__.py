"""A hospital's own pairs: from a table of CTs and radiographs to targets for training, case by case, each with its report."""
