//! The result as a picture: a panel per figure, in it a bar per variant from zero to the median, and a line from the
//! least to the most of the rounds.

use std::fmt::Write as _;

use crate::figures::{Better, Figure, Samples, Spread};
use crate::stage::Variant;
use crate::table::number;

const COLUMNS: usize = 3;
const WIDTH: f64 = 1000.0;
const MARGIN: f64 = 20.0;
const PANEL: f64 = (WIDTH - 2.0 * MARGIN) / 3.0;
/// From the left edge of a panel to zero, and from zero to the largest value.
const NAMES: f64 = 72.0;
const PLOT: f64 = 170.0;
/// Heights: what is above the first bar, one bar with its surroundings, what is below the last.
const HEAD: f64 = 46.0;
const BAR: f64 = 20.0;
const FOOT: f64 = 34.0;

const STYLE: &str = "
    .page { fill: #ffffff; stroke: #d0d7de; }
    text { fill: #1f2328; }
    .small { font-size: 11px; fill: #57606a; }
    .bold { font-weight: 600; font-size: 13px; }
    .axis { stroke: #8c959f; fill: none; }
    .spread { stroke: #1f2328; stroke-width: 1.5; fill: none; }
    .v0 { fill: #afb8c1; } .v1 { fill: #2da44e; } .v2 { fill: #bf8700; } .v3 { fill: #218bff; } .v4 { fill: #a475f9; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117; stroke: #30363d; }
      text { fill: #e6edf3; }
      .small { fill: #9da7b1; }
      .axis { stroke: #6e7681; }
      .spread { stroke: #e6edf3; }
      .v0 { fill: #6e7681; } .v1 { fill: #2ea043; } .v2 { fill: #9e6a03; } .v3 { fill: #1f6feb; } .v4 { fill: #8957e5; }
    }
  ";

/// The whole picture: light or dark as its reader's system is, without scripts.
pub fn svg(samples: &Samples, variants: &[Variant]) -> String {
    let figures: Vec<Figure> = samples.figures().filter(Figure::is_plotted).collect();
    let panel_height = HEAD + BAR * variants.len() as f64 + FOOT;
    let height = 2.0 * MARGIN + panel_height * figures.len().div_ceil(COLUMNS) as f64;
    let mut out = String::new();
    // Writing to a String cannot fail; so below.
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" aria-labelledby=\"title desc\" font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif\" \
         font-size=\"12\">\n  \
         <title id=\"title\">The mesh, measured from outside</title>\n  \
         <desc id=\"desc\">One panel per figure of the table in performance.md: a bar from zero to the median, a line from \
         the least to the most of the rounds, for {}.</desc>\n  \
         <style>{STYLE}</style>\n  \
         <rect class=\"page\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"10\"/>",
        escaped(&variants.iter().map(|it| it.name.as_str()).collect::<Vec<_>>().join(", ")),
        WIDTH - 1.0,
        height - 1.0,
    );
    for (nth, figure) in figures.into_iter().enumerate() {
        let left = MARGIN + PANEL * (nth % COLUMNS) as f64;
        let top = MARGIN + panel_height * (nth / COLUMNS) as f64;
        panel(&mut out, samples, variants, figure, (left, top));
    }
    out.push_str("</svg>\n");
    out
}

fn panel(out: &mut String, samples: &Samples, variants: &[Variant], figure: Figure, at: (f64, f64)) {
    let (left, top) = at;
    let spreads: Vec<Option<Spread>> = (0..variants.len()).map(|nth| samples.spread(figure, nth)).collect();
    let known = || spreads.iter().flatten();
    let most = known().map(|it| it.max).fold(0.0, f64::max);
    let least = known().map(|it| it.min).fold(0.0, f64::min);
    let scale = if most > least { PLOT / (most - least) } else { 0.0 };
    let zero = left + NAMES;
    let x = |value: f64| zero + (value - least) * scale;
    let better = match figure.better() {
        Better::More => "more is better",
        Better::Less => "less is better",
    };
    let unit = format!("{}{}{better}", figure.unit(), if figure.unit().is_empty() { "" } else { ", " });
    let _ = writeln!(
        out,
        "  <text class=\"bold\" x=\"{left:.1}\" y=\"{:.1}\">{}</text>",
        top + 16.0,
        escaped(&figure.caption())
    );
    let _ = writeln!(
        out,
        "  <text class=\"small\" x=\"{left:.1}\" y=\"{:.1}\">{}</text>",
        top + 32.0,
        escaped(&unit)
    );
    for (nth, (variant, spread)) in variants.iter().zip(&spreads).enumerate() {
        let y = top + HEAD + BAR * nth as f64;
        let base = y + 13.0;
        let name: String = variant.name.chars().take(10).collect();
        let _ = writeln!(
            out,
            "  <text x=\"{:.1}\" y=\"{base:.1}\" text-anchor=\"end\">{}</text>",
            zero - 6.0,
            escaped(&name)
        );
        let Some(Spread { median, min, max }) = *spread else {
            let _ =
                writeln!(out, "  <text class=\"small\" x=\"{:.1}\" y=\"{base:.1}\">none</text>", zero + 6.0);
            continue;
        };
        let (from, to) = (x(median.min(0.0)), x(median.max(0.0)));
        let _ = writeln!(
            out,
            "  <rect class=\"v{}\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"14\"/>",
            nth % 5,
            y + 2.0,
            to - from
        );
        let middle = y + 9.0;
        let _ = writeln!(
            out,
            "  <path class=\"spread\" d=\"M{0:.1} {middle:.1} H{1:.1} M{0:.1} {2:.1} v8 M{1:.1} {2:.1} v8\"/>",
            x(min),
            x(max),
            middle - 4.0
        );
        let _ = writeln!(
            out,
            "  <text x=\"{:.1}\" y=\"{base:.1}\">{}</text>",
            x(max.max(0.0)) + 6.0,
            number(median)
        );
    }
    let bottom = top + HEAD + BAR * variants.len() as f64 + 2.0;
    let _ = writeln!(
        out,
        "  <path class=\"axis\" d=\"M{0:.1} {1:.1} V{bottom:.1} H{2:.1}\"/>",
        x(0.0),
        top + HEAD - 2.0,
        x(most)
    );
    let _ = writeln!(
        out,
        "  <text class=\"small\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">0</text>",
        x(0.0),
        bottom + 13.0
    );
    let _ = writeln!(
        out,
        "  <text class=\"small\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        x(most),
        bottom + 13.0,
        number(most)
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
