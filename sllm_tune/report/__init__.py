"""The report: results.json in, report.html and report.md out."""

from sllm_tune.report.page import render, write_report

__all__ = ["render", "write_report"]
