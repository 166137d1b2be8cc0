//! The result as text: for a terminal, and for `docs/performance.md`.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use crate::figures::{Better, Figure, Samples, Spread};
use crate::plot;
use crate::stage::Variant;

/// Between these lines `--write` replaces what it finds.
const BEGIN: &str = "<!-- begin: written by make bench-mesh -->";
const END: &str = "<!-- end -->";
const PAGE: &str = "performance.md";
const SVG: &str = "performance.svg";
const LEGEND: &str = "Medians of the rounds (least–most). A ratio is the median of each round's own ratio. \
                      *n: in n rounds steal or foreign processes took more than 6 % of the machine.";

/// One variant divided by another.
struct Ratio {
    of: usize,
    by: usize,
}

/// adit, or the first that has proxies, by every other one.
fn ratios(variants: &[Variant]) -> Vec<Ratio> {
    let subject = variants.iter().position(|it| it.name == "adit");
    let subject = subject.or_else(|| variants.iter().position(|it| !it.is_bare()));
    let others = |of: usize| (0..variants.len()).filter(move |&by| by != of).map(move |by| Ratio { of, by });
    subject.into_iter().flat_map(others).collect()
}

fn heads(variants: &[Variant], ratios: &[Ratio]) -> Vec<String> {
    let names = variants.iter().map(|variant| variant.name.clone());
    let by = ratios.iter().map(|ratio| format!("{}/{}", variants[ratio.of].name, variants[ratio.by].name));
    names.chain(by).collect()
}

fn cells(samples: &Samples, figure: Figure, variants: &[Variant], ratios: &[Ratio]) -> Vec<String> {
    let values = (0..variants.len()).map(|variant| samples.spread(figure, variant));
    let by = ratios.iter().map(|ratio| samples.ratio(figure, ratio.of, ratio.by));
    values.chain(by).map(|spread| spread.map_or(String::new(), text)).collect()
}

fn text(spread: Spread) -> String {
    let Spread { median, min, max } = spread;
    if min == max {
        number(median)
    } else {
        format!("{} ({}–{})", number(median), number(min), number(max))
    }
}

/// Three digits or so, thousands set apart.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if size < 9.995 {
        return format!("{value:.2}");
    }
    if size < 99.95 {
        return format!("{value:.1}");
    }
    let digits = format!("{size:.0}");
    let mut text = if value < 0.0 { "-".to_owned() } else { String::new() };
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn unit(figure: Figure) -> String {
    let arrow = match figure.better() {
        Better::More => '↑',
        Better::Less => '↓',
    };
    format!("{arrow} {}", figure.unit()).trim().to_owned()
}

fn title(samples: &Samples, figure: Figure) -> String {
    match samples.marked(figure) {
        0 => figure.title(),
        rounds => format!("{} *{rounds}", figure.title()),
    }
}

/// Everything, in columns.
pub fn terminal(samples: &Samples, variants: &[Variant]) -> String {
    let ratios = ratios(variants);
    let mut rows = vec![[vec![String::new(), String::new()], heads(variants, &ratios)].concat()];
    let mut sections = vec![None];
    let mut last = "";
    for figure in samples.figures() {
        sections.push((figure.section() != last).then(|| figure.section()));
        last = figure.section();
        let first = vec![format!("  {}", title(samples, figure)), unit(figure)];
        rows.push([first, cells(samples, figure, variants, &ratios)].concat());
    }
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (row, section) in rows.iter().zip(sections) {
        if let Some(section) = section {
            // Writing to a String cannot fail; so below.
            let _ = writeln!(out, "{section}");
        }
        let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = padded.collect::<Vec<_>>().join("  ");
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let _ = write!(out, "\n↑ more is better, ↓ less is. {LEGEND}");
    out
}

/// The conditions, the table, and what only explains it.
pub fn markdown(
    samples: &Samples,
    variants: &[Variant],
    conditions: &[String],
    complaints: &[String],
) -> String {
    let mut out = String::new();
    for line in conditions {
        let _ = writeln!(out, "- {line}");
    }
    for complaint in complaints {
        let _ = writeln!(out, "- Did not work: {}", complaint.lines().next().unwrap_or_default());
    }
    let (details, main): (Vec<_>, Vec<_>) = samples.figures().partition(Figure::is_detail);
    let _ = writeln!(out, "\n{}", table(samples, variants, &main));
    let _ = writeln!(out, "↑ more is better, ↓ less is. {}", LEGEND.replace('*', "\\*"));
    if !details.is_empty() {
        let _ = writeln!(out, "\n<details><summary>Each proxy by itself</summary>\n");
        let _ = writeln!(out, "{}</details>", table(samples, variants, &details));
    }
    out
}

fn table(samples: &Samples, variants: &[Variant], figures: &[Figure]) -> String {
    let ratios = ratios(variants);
    let heads = heads(variants, &ratios);
    let line =
        |first: &str, unit: &str, cells: &[String]| format!("| {first} | {unit} | {} |\n", cells.join(" | "));
    let mut out = line("", "", &heads);
    out.push_str(&line("---", "---", &vec!["---:".to_owned(); heads.len()]));
    let mut last = "";
    for &figure in figures {
        if figure.section() != last {
            last = figure.section();
            out.push_str(&line(&format!("**{last}**"), "", &vec![String::new(); heads.len()]));
        }
        let title = title(samples, figure).replace('*', "\\*");
        out.push_str(&line(&title, &unit(figure), &cells(samples, figure, variants, &ratios)));
    }
    out
}

/// Whether [`write`] will know what to do with what is there: better asked before a long run than after it.
pub fn can_write(directory: &Path) -> io::Result<()> {
    page(directory, "").map(drop)
}

/// Writes `performance.svg`, and `performance.md` or, where that has the two markers, what is between them.
pub fn write(
    directory: &Path,
    samples: &Samples,
    variants: &[Variant],
    conditions: &[String],
    complaints: &[String],
) -> io::Result<()> {
    let page = page(directory, &markdown(samples, variants, conditions, complaints))?;
    fs::create_dir_all(directory)?;
    fs::write(directory.join(SVG), plot::svg(samples, variants))?;
    fs::write(directory.join(PAGE), page)
}

/// The whole text of the page with `new` between its markers.
fn page(directory: &Path, new: &str) -> io::Result<String> {
    let path = directory.join(PAGE);
    let new = format!("{BEGIN}\n\n{new}\n{END}");
    match fs::read_to_string(&path) {
        Ok(old) => between(&old, &new).ok_or_else(|| {
            let what = format!("{} has no lines {BEGIN:?} and {END:?}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, what)
        }),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(format!("{new}\n")),
        Err(cause) => Err(cause),
    }
}

fn between(old: &str, new: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{new}{after}"))
}
