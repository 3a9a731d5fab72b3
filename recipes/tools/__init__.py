"""Commands on recipes and on finished runs. They import recipes; no recipe imports them."""
