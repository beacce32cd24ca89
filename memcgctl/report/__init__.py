"""Renders the model: tables, trees and JSON."""
