"""Colours, type and CSS of all pages; nothing in it is fetched from outside."""

from pathlib import Path
from urllib.parse import quote

import gradio as gr
from gradio.themes.utils import colors, fonts, sizes

# Fonts of the reader's own system: a page must look finished without any network.
_SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")

_INK = colors.Color(
    "#f6f8fb", "#e6edf6", "#c9d8ec", "#9dbbe0", "#6b98d0", "#3f76bb",
    "#275d9f", "#1f4c84", "#1b3f6c", "#16345a", "#0e223c", name="ink",
)  # fmt: skip
_STONE = colors.Color(
    "#fafaf9", "#f3f3f1", "#e5e6e3", "#d2d4d0", "#a3a7a5", "#777c7c",
    "#555b5d", "#3d4346", "#282d31", "#1b1f23", "#121518", name="stone",
)  # fmt: skip


def theme() -> gr.themes.Base:
    """A quiet instrument panel: hairlines, one accent, no shadows."""
    return gr.themes.Base(
        primary_hue=_INK,
        secondary_hue=_INK,
        neutral_hue=_STONE,
        text_size=sizes.text_sm,
        spacing_size=sizes.spacing_md,
        radius_size=sizes.radius_sm,
        font=[fonts.Font(name) for name in _SANS],
        font_mono=[fonts.Font(name) for name in _MONO],
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_200",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="*neutral_800",
        border_color_primary="*neutral_200",
        border_color_primary_dark="*neutral_800",
        border_color_accent="*primary_500",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_400",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_400",
        block_title_text_weight="500",
        block_title_text_size="12px",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        block_info_text_size="12px",
        block_padding="10px",
        layout_gap="12px",
        panel_background_fill="transparent",
        panel_background_fill_dark="transparent",
        panel_border_width="0",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_400",
        input_background_fill="white",
        input_background_fill_dark="*neutral_950",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_border_color_focus="*primary_500",
        input_border_color_focus_dark="*primary_400",
        input_border_width="1px",
        input_shadow="none",
        input_shadow_focus="0 0 0 2px *primary_200",
        input_shadow_focus_dark="0 0 0 2px *primary_800",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_500",
        button_primary_background_fill_hover_dark="*primary_400",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_primary_border_color="transparent",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="*neutral_900",
        button_secondary_background_fill_hover_dark="*neutral_800",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        button_secondary_text_color="*neutral_800",
        button_secondary_text_color_dark="*neutral_200",
        button_primary_shadow="none",
        button_secondary_shadow="none",
        button_border_width="1px",
        button_transition="background-color .12s",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
        checkbox_label_background_fill_hover="transparent",
        checkbox_label_background_fill_hover_dark="transparent",
        checkbox_label_border_width="0",
        checkbox_label_padding="2px 0",
        checkbox_background_color_selected="*primary_600",
        checkbox_border_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_500",
        checkbox_border_color_selected_dark="*primary_500",
        link_text_color="*primary_600",
        link_text_color_dark="*primary_300",
        link_text_color_hover="*primary_800",
        link_text_color_hover_dark="*primary_200",
        table_border_color="*neutral_200",
        table_border_color_dark="*neutral_800",
        table_even_background_fill="white",
        table_even_background_fill_dark="*neutral_900",
        table_odd_background_fill="white",
        table_odd_background_fill_dark="*neutral_900",
        table_row_focus="*primary_50",
        table_row_focus_dark="*neutral_800",
        slider_color="*primary_500",
    )


_HERE = Path(__file__).parent
CSS = "".join((_HERE / name).read_text(encoding="utf-8") for name in ("theme.css", "story.css"))
ICON = _HERE / "mark.svg"
# The icon inside a page that has no files beside it.
MARK = "data:image/svg+xml," + quote(ICON.read_text(encoding="utf-8").strip())
