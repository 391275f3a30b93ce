"""Figures and the HTML report, drawn from the rows that runs leave behind."""
