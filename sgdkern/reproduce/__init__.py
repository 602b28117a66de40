"""The experiments of Feng and Tu (2021), figure by figure: one file a figure, `paper` lists and runs them."""
