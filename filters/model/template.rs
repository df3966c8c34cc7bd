//! A compiled chat template, in the environment that transformers provides. Rendering is bounded in
//! instructions and memory (fuel).
//!
//! - `template_dataflow`: taint analysis: templates that only copy contents to the output
//! - `prompt_skeleton`: their output with placeholders, cached by roles

mod prompt_skeleton;
mod template_dataflow;

#[cfg(test)]
mod tests;

pub(super) use prompt_skeleton::PlainMessage;

use super::config::Config;
use super::conversation::{Conversation, RequestMessages};
use super::python;
use crate::encoded::UnixTime;
use minijinja::machinery;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Object, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, escape_formatter};
use prompt_skeleton::SkeletonCache;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use template_dataflow::analyze;

/// Limit of one rendering in instructions, about 0.2 s; every 64 bytes of output count as one, so
/// that the output is at most 256 MB. A conversation of 10,000 messages takes less than a million.
const FUEL: u64 = 4_000_000;

/// Name of the only template in its environment.
const NAME: &str = "chat";

/// Result of rendering a conversation.
pub(super) struct Rendered {
    pub(super) text: String,
    /// The template called `strftime_now`.
    pub(super) prints_date: bool,
}

/// Content format that a template expects (vLLM's `--chat-template-content-format auto`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContentFormat {
    /// One string; texts of several parts are joined by newlines.
    String,
    /// A list of parts, even for a plain string.
    Parts,
}

/// A compiled template.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    pub(super) format: ContentFormat,
    /// The template handles the role `developer`.
    pub(super) knows_developer: bool,
    /// vLLM renders this model's chats with its own code (gpt-oss: Harmony), which the template
    /// imitates.
    pub(super) imitates: bool,
    /// The template calls `strftime_now`, which depends on the time of the request.
    dates: bool,
    /// Present if the template only copies contents and prints no date.
    skeletons: Option<SkeletonCache>,
}

impl ChatTemplate {
    pub(super) fn compile(source: String) -> Result<ChatTemplate, Error> {
        let format = content_format(&source);
        let knows_developer = source.contains("'developer'") || source.contains("\"developer\"");
        let imitates = source.contains("<|start|>") && source.contains("<|channel|>");
        let dates = source.contains("strftime_now");
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
        let source = without_generation_tags(source);
        let skeletons = if dates { None } else { skeletons(&source, syntax.clone()) };
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|out, state, value| match value.as_str() {
            // Writes a string directly instead of through `Display`.
            Some(text) => Ok(out.write_str(text)?),
            None => escape_formatter(out, state, value),
        });
        environment.set_fuel(Some(FUEL));
        // Debug reports would copy prompts into errors.
        environment.set_debug(false);
        environment.add_filter("tojson", python::tojson);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(NAME, source)?;
        Ok(ChatTemplate { environment, format, knows_developer, imitates, dates, skeletons })
    }

    /// Renders a conversation; `None` if vLLM or the template refuses a message.
    pub(super) fn render(
        &self,
        messages: RequestMessages<'_>,
        config: &Config,
        clock: UnixTime,
    ) -> Option<Rendered> {
        if let Some(skeletons) = &self.skeletons
            && let Some(plain) = messages.plain(self)
        {
            let generation = messages.adds_generation_prompt();
            let whole = |messages: &[PlainMessage<'_>]| {
                let conversation = Conversation::of(messages, generation);
                self.render_whole(conversation, config, clock).ok().map(|rendered| rendered.text)
            };
            if let Some(text) = skeletons.fill(&plain, generation, whole) {
                return Some(Rendered { text, prints_date: false });
            }
        }
        self.render_whole(messages.conversation(self)?, config, clock).ok()
    }

    /// Runs the template.
    fn render_whole(
        &self,
        conversation: Conversation,
        config: &Config,
        clock: UnixTime,
    ) -> Result<Rendered, Error> {
        let continued = conversation.mark_end();
        let prints_date = Arc::new(AtomicBool::new(false));
        let strftime_now = self.dates.then(|| strftime_now(clock, Arc::clone(&prints_date)));
        let special = config.special_names().filter_map(|name| Some((name, config.special(name)?)));
        let context = Context { conversation, strftime_now, special: special.collect() };
        let template = self.environment.get_template(NAME)?;
        let mut text = template.render(Value::from_object(context))?;
        if let Some(end) = continued {
            end.cut(&mut text)?;
        }
        Ok(Rendered { text, prints_date: prints_date.load(Relaxed) })
    }
}

fn skeletons(source: &str, syntax: SyntaxConfig) -> Option<SkeletonCache> {
    let tree = machinery::parse(source, NAME, syntax).ok()?;
    // Placeholders are strings, so that the template must not expect parts.
    let dataflow = analyze(&tree).filter(|_| content_format(source) == ContentFormat::String)?;
    SkeletonCache::of(dataflow, source)
}

/// The template's variables, read by name without building a map.
#[derive(Debug)]
struct Context {
    conversation: Conversation,
    strftime_now: Option<Value>,
    special: Vec<(&'static str, Value)>,
}

impl Object for Context {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, name: &str) -> Option<Value> {
        if let Some(value) = self.conversation.variable(name) {
            return Some(value);
        }
        if name == "strftime_now" {
            return self.strftime_now.clone();
        }
        self.special.iter().find(|(known, _)| *known == name).map(|(_, text)| text.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::NonEnumerable
    }
}

fn strftime_now(clock: UnixTime, prints_date: Arc<AtomicBool>) -> Value {
    Value::from_function(move |format: String| {
        prints_date.store(true, Relaxed);
        python::strftime(&format, clock.0).ok_or_else(|| {
            Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {format}"))
        })
    })
}

/// Neutralises `{% generation %}`, which marks assistant text for training.
fn without_generation_tags(source: String) -> String {
    if !source.contains("generation") {
        return source;
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(open) = rest.find("{%") {
        let Some(length) = rest[open..].find("%}") else { break };
        let (tag, end) = (&rest[open + 2..open + length], open + length + 2);
        let word = tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        out.push_str(&rest[..open]);
        match word {
            "generation" => out.push_str(&rest[open..end].replace("generation", "if true")),
            "endgeneration" => out.push_str(&rest[open..end].replace("endgeneration", "endif")),
            _ => out.push_str(&rest[open..end]),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// A template that loops over a message's content expects parts. vLLM finds such loops in the
/// syntax tree; this searches the text for `{% for part in message['content'] %}` and its
/// spellings.
fn content_format(source: &str) -> ContentFormat {
    let tags = source.split("{%").skip(1).filter_map(|rest| rest.split_once("%}"));
    for (tag, _) in tags {
        let tag = tag.trim_start_matches(['-', '+']).trim_start();
        let Some((_, over)) = tag.strip_prefix("for ").and_then(|tag| tag.split_once(" in "))
        else {
            continue;
        };
        let over = over.split(['|', ' ', '-', '\n']).find(|word| !word.is_empty()).unwrap_or("");
        let over: String = over.chars().filter(|c| !matches!(c, '"' | '\'' | ' ')).collect();
        if over == "content" || over.ends_with(".content") || over.ends_with("[content]") {
            return ContentFormat::Parts;
        }
    }
    ContentFormat::String
}
