//! One event to one line: tab-separated text, or a JSON object.

use std::fmt::{self, Debug, Display, Write};
use std::sync::Arc;

use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::levels::{Levels, shown};
use super::queue::Queue;

/// How a line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `time⇥level⇥scope:span{k=v}⇥message⇥k=v k=v`, as Istio's tools cut it.
    #[default]
    Plain,
    /// One object: `level`, `time`, `scope`, `message`, the fields, and one object for each span.
    Json,
}

/// The layer that turns events into lines.
pub(super) struct Lines {
    format: Format,
    levels: Levels,
    queue: Arc<Queue>,
}

/// A span's fields, already spelled; kept in its extensions.
struct SpanFields(Fields);

impl Lines {
    pub(super) fn new(format: Format, levels: Levels, queue: Arc<Queue>) -> Self {
        Self { format, levels, queue }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // The answer holds until the levels change, so a line nobody wants costs one load and a branch.
        if self.levels.want(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.levels.want(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.levels.most())
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::new(self.format);
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(SpanFields(fields));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(SpanFields(fields)) = span.extensions_mut().get_mut() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::new(self.format);
        event.record(&mut fields);
        let mut spans = String::new();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            let of_span = extensions.get::<SpanFields>().map_or("", |SpanFields(fields)| &fields.text);
            span_text(&mut spans, self.format, span.name(), of_span);
        }
        let line = line(self.format, event.metadata(), &fields, &spans, OffsetDateTime::now_utc());
        self.queue.push(line.into_bytes());
    }
}

fn span_text(out: &mut String, format: Format, name: &str, fields: &str) {
    match format {
        Format::Plain => {
            out.push(':');
            out.push_str(name);
            if !fields.is_empty() {
                let _ = write!(out, "{{{fields}}}");
            }
        }
        Format::Json => {
            out.push(',');
            json_string(out, name);
            let _ = write!(out, ":{{{fields}}}");
        }
    }
}

/// Writing to a `String` cannot fail, hence the ignored results here and below.
fn line(
    format: Format,
    metadata: &Metadata<'_>,
    Fields { message, text, .. }: &Fields,
    spans: &str,
    now: OffsetDateTime,
) -> String {
    let mut line = String::with_capacity(128 + spans.len() + message.len() + text.len());
    let level = level(*metadata.level());
    let time = Timestamp(now);
    let target = metadata.target();
    match format {
        Format::Plain => {
            let target = shown(target);
            let _ = writeln!(line, "{time}\t{level}\t{target}{spans}\t{message}\t{text}");
        }
        Format::Json => {
            let _ = write!(line, r#"{{"level":"{level}","time":"{time}","scope":"#);
            json_string(&mut line, target);
            if !message.is_empty() {
                line.push_str(",\"message\":");
                json_string(&mut line, message);
            }
            if !text.is_empty() {
                line.push(',');
            }
            let _ = writeln!(line, "{text}{spans}}}");
        }
    }
    line
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// RFC 3339, UTC, microseconds.
struct Timestamp(OffsetDateTime);

impl Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (date, time) = (self.0.date(), self.0.time());
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
            date.year(),
            u8::from(date.month()),
            date.day(),
            time.hour(),
            time.minute(),
            time.second(),
            time.microsecond()
        )
    }
}

/// Fields as the line wants them: `k=v k=v`, or `"k":v,"k":v`; the message apart.
struct Fields {
    format: Format,
    message: String,
    text: String,
}

impl Fields {
    fn new(format: Format) -> Self {
        Self { format, message: String::new(), text: String::new() }
    }

    fn key(&mut self, field: &Field) {
        match self.format {
            Format::Plain => {
                if !self.text.is_empty() {
                    self.text.push(' ');
                }
                self.text.push_str(field.name());
                self.text.push('=');
            }
            Format::Json => {
                if !self.text.is_empty() {
                    self.text.push(',');
                }
                json_string(&mut self.text, field.name());
                self.text.push(':');
            }
        }
    }

    /// A value that both formats write as it is: numbers, true and false.
    fn literal(&mut self, field: &Field, value: impl Display) {
        self.key(field);
        let _ = write!(self.text, "{value}");
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            let _ = match self.format {
                Format::Plain => write!(OneLine(&mut self.message), "{value:?}"),
                Format::Json => write!(self.message, "{value:?}"),
            };
            return;
        }
        self.key(field);
        match self.format {
            Format::Plain => {
                let _ = write!(OneLine(&mut self.text), "{value:?}");
            }
            Format::Json => json_string(&mut self.text, &format!("{value:?}")),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            return self.record_debug(field, &format_args!("{value}"));
        }
        self.key(field);
        match self.format {
            Format::Plain => {
                let _ = write!(self.text, "{value:?}");
            }
            Format::Json => json_string(&mut self.text, value),
        }
    }

    /// The whole chain of causes, as one string.
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut chain = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            let _ = write!(chain, ": {error}");
            cause = error.source();
        }
        self.record_str(field, &chain);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.literal(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.literal(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.literal(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no word for NaN and infinity (RFC 8259 §6).
        if value.is_finite() { self.literal(field, value) } else { self.record_debug(field, &value) }
    }
}

/// Escapes control characters on the way through: bare text from outside must not end the line or a column.
struct OneLine<'a>(&'a mut String);

impl Write for OneLine<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if c.is_control() { self.0.extend(c.escape_debug()) } else { self.0.push(c) }
        }
        Ok(())
    }
}

fn json_string(out: &mut String, text: &str) {
    // Displaying a JSON value escapes as RFC 8259 §7 asks, and a string always has a form.
    let _ = write!(out, "{}", serde_json::Value::from(text));
}
