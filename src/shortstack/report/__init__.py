"""The report of a study: what its store holds, as tables, figures and one page; nothing is measured again."""
