//! The result as a picture: a panel per figure, in it a dot per variant at the median of the rounds, and whiskers from
//! the least to the most of them. Every scale begins at zero, so that distances compare as ratios do.

use std::fmt::Write as _;

use crate::figures::{Better, Figure, Samples, Spread};
use crate::stage::Variant;
use crate::table::number;

const COLUMNS: usize = 3;
/// Variants `.v0` to `.v4` of the style; more than these begin again.
const COLOURS: usize = 5;
const WIDTH: f64 = 1000.0;
const MARGIN: f64 = 20.0;
const PANEL: f64 = (WIDTH - 2.0 * MARGIN) / 3.0;
/// From the left edge of a panel to zero, and from zero to the largest value.
const NAMES: f64 = 72.0;
const PLOT: f64 = 170.0;
/// Heights: what is above the first row, a variant's row, what is below the last.
const HEAD: f64 = 46.0;
const ROW: f64 = 20.0;
const FOOT: f64 = 34.0;

const STYLE: &str = "
    .page { fill: #ffffff; stroke: #d0d7de; }
    text { fill: #1f2328; }
    .small { font-size: 11px; fill: #57606a; }
    .bold { font-weight: 600; font-size: 13px; }
    .axis { stroke: #8c959f; fill: none; }
    .guide { stroke: #d8dee4; fill: none; stroke-dasharray: 1 3; }
    .spread { stroke: currentColor; stroke-width: 2; fill: none; }
    circle { fill: currentColor; }
    .v0 { color: #6e7781; } .v1 { color: #1a7f37; } .v2 { color: #bc4c00; }
    .v3 { color: #0969da; } .v4 { color: #8250df; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117; stroke: #30363d; }
      text { fill: #e6edf3; }
      .small { fill: #9da7b1; }
      .axis { stroke: #6e7681; }
      .guide { stroke: #30363d; }
      .v0 { color: #9da7b1; } .v1 { color: #3fb950; } .v2 { color: #f0883e; }
      .v3 { color: #58a6ff; } .v4 { color: #bc8cff; }
    }
  ";

/// The whole picture: light or dark as its reader's system is, without scripts.
pub fn svg(samples: &Samples, variants: &[Variant]) -> String {
    let figures: Vec<Figure> = samples.figures().filter(Figure::is_plotted).collect();
    let panel_height = HEAD + ROW * variants.len() as f64 + FOOT;
    let height = 2.0 * MARGIN + panel_height * figures.len().div_ceil(COLUMNS) as f64;
    let mut out = String::new();
    // Writing to a String cannot fail; so below.
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" aria-labelledby=\"title desc\" font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif\" \
         font-size=\"12\">\n  \
         <title id=\"title\">The mesh, measured from outside</title>\n  \
         <desc id=\"desc\">One panel per figure of the table in performance.md: a dot at the median and whiskers \
         from the least to the most of the rounds, for {}.</desc>\n  \
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
        let y = top + HEAD + ROW * nth as f64;
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
        let middle = y + 9.0;
        let colour = nth % COLOURS;
        let _ = writeln!(
            out,
            "  <path class=\"guide\" d=\"M{:.1} {middle:.1} H{:.1}\"/>\n  \
             <path class=\"spread v{colour}\" d=\"M{2:.1} {middle:.1} H{3:.1} M{2:.1} {4:.1} v8 M{3:.1} {4:.1} v8\"/>\n  \
             <circle class=\"v{colour}\" cx=\"{5:.1}\" cy=\"{middle:.1}\" r=\"4.5\"/>",
            x(0.0),
            x(min),
            x(min),
            x(max),
            middle - 4.0,
            x(median)
        );
        let _ = writeln!(
            out,
            "  <text x=\"{:.1}\" y=\"{base:.1}\">{}</text>",
            x(max.max(0.0)) + 6.0,
            number(median)
        );
    }
    let bottom = top + HEAD + ROW * variants.len() as f64 + 2.0;
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
