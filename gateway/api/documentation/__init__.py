"""The interactive documentation, which loads nothing from other hosts."""
