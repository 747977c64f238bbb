"""Widgets that know no adapters: tables, dialogs, forms, heat maps, matrices and tabs."""
