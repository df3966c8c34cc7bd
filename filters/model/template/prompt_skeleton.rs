//! Prompt skeletons: a template's output for a sequence of roles, with placeholders for the
//! contents. Rendered once and filled for later conversations, if the template only copies contents
//! (`template_dataflow.rs`). It must never be filled with a content that the template would
//! inspect.

use super::template_dataflow::Dataflow;
use arc_swap::ArcSwap;
use memchr::memmem::Finder;
use std::sync::Arc;

/// Messages of a conversation; longer ones are rendered in full.
const MESSAGES_MAX: usize = 256;
/// Cached skeletons per template; below, the limit of each in bytes.
const SKELETONS_MAX: usize = 128;
const TEXT_MAX: usize = 1 << 16;
/// Placeholder of the content of message 0, from a private-use plane of Unicode; message i has the
/// i-th character after it.
const FIRST_PLACEHOLDER: u32 = 0xF_0000;

/// A message with a role and a text only.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct PlainMessage<'a> {
    pub(in crate::model) role: &'a str,
    pub(in crate::model) content: &'a str,
}

/// A template's most recent skeletons; reads take no lock.
pub(super) struct SkeletonCache {
    content_literals: Vec<Finder<'static>>,
    trims_content: bool,
    known: ArcSwap<Vec<Arc<Skeleton>>>,
}

/// Skeleton for one sequence of roles.
struct Skeleton {
    roles: Box<[Box<str>]>,
    generation: bool,
    text: String,
    /// Byte position in `text` and message index of each content.
    placeholders: Vec<(usize, usize)>,
}

impl SkeletonCache {
    /// Returns `None` if the template or one of its literals contains a placeholder character.
    pub(super) fn of(dataflow: Dataflow, source: &str) -> Option<SkeletonCache> {
        let taken = |text: &str| text.chars().any(|c| placeholder_index(c).is_some());
        if taken(source) || dataflow.content_literals.iter().any(|literal| taken(literal)) {
            return None;
        }
        let content_literals = dataflow
            .content_literals
            .iter()
            .map(|literal| Finder::new(literal).into_owned())
            .collect();
        Some(SkeletonCache {
            content_literals,
            trims_content: dataflow.trims_content,
            known: ArcSwap::default(),
        })
    }

    /// Fills a skeleton with `messages`, and renders the skeleton with `render` if these roles are
    /// new. `None`: the conversation must be rendered in full.
    pub(super) fn fill(
        &self,
        messages: &[PlainMessage<'_>],
        generation: bool,
        render: impl FnOnce(&[PlainMessage<'_>]) -> Option<String>,
    ) -> Option<String> {
        if messages.len() > MESSAGES_MAX || !messages.iter().all(|one| self.accepts(one.content)) {
            return None;
        }
        let known = self.known.load();
        let found = known.iter().find(|skeleton| skeleton.is_of(messages, generation));
        if let Some(skeleton) = found {
            return Some(skeleton.filled(messages));
        }
        let placeholders: Vec<String> = (0..messages.len()).filter_map(placeholder).collect();
        let of = |(one, placeholder): (&PlainMessage<'_>, _)| (one.role.into(), placeholder);
        let (roles, placeholders): (Vec<Box<str>>, Vec<&String>) =
            messages.iter().zip(&placeholders).map(of).unzip();
        let stand_ins = roles.iter().zip(placeholders);
        let stand_ins: Vec<PlainMessage<'_>> =
            stand_ins.map(|(role, content)| PlainMessage { role, content }).collect();
        let rendered = render(&stand_ins)?;
        let skeleton = Arc::new(Skeleton::read(roles.into(), generation, &rendered)?);
        let filled = skeleton.filled(messages);
        self.known.rcu(|known| {
            let kept = known.iter().skip(known.len().saturating_sub(SKELETONS_MAX - 1));
            kept.cloned().chain([Arc::clone(&skeleton)]).collect::<Vec<_>>()
        });
        Some(filled)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.load().len()
    }

    fn accepts(&self, content: &str) -> bool {
        let whole = !self.trims_content || content.trim().len() == content.len();
        !content.is_empty()
            && whole
            && self
                .content_literals
                .iter()
                .all(|literal| literal.find(content.as_bytes()).is_none())
    }
}

impl Skeleton {
    /// Returns `None` if the skeleton is too long, or a role contains a placeholder character.
    fn read(roles: Box<[Box<str>]>, generation: bool, rendered: &str) -> Option<Skeleton> {
        let like_placeholder =
            roles.iter().any(|role| role.chars().any(|c| placeholder_index(c).is_some()));
        let length = rendered.len() + roles.iter().map(|role| role.len()).sum::<usize>();
        if like_placeholder || length > TEXT_MAX {
            return None;
        }
        let (mut text, mut placeholders) = (String::with_capacity(rendered.len()), Vec::new());
        for c in rendered.chars() {
            match placeholder_index(c) {
                Some(message) => placeholders.push((text.len(), message)),
                None => text.push(c),
            }
        }
        Some(Skeleton { roles, generation, text, placeholders })
    }

    fn is_of(&self, messages: &[PlainMessage<'_>], generation: bool) -> bool {
        self.generation == generation
            && self.roles.len() == messages.len()
            && self.roles.iter().zip(messages).all(|(role, message)| **role == *message.role)
    }

    fn filled(&self, messages: &[PlainMessage<'_>]) -> String {
        let contents =
            self.placeholders.iter().map(|(_, message)| messages[*message].content.len());
        let mut out = String::with_capacity(self.text.len() + contents.sum::<usize>());
        let mut done = 0;
        for (at, message) in &self.placeholders {
            out.push_str(&self.text[done..*at]);
            out.push_str(messages[*message].content);
            done = *at;
        }
        out.push_str(&self.text[done..]);
        out
    }
}

fn placeholder(message: usize) -> Option<String> {
    char::from_u32(FIRST_PLACEHOLDER + message as u32).map(String::from)
}

fn placeholder_index(c: char) -> Option<usize> {
    let index = (c as u32).checked_sub(FIRST_PLACEHOLDER)? as usize;
    (index < MESSAGES_MAX).then_some(index)
}
