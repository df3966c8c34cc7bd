//! What a template prints of a conversation, with places for the contents: rendered once for all
//! conversations with the same roles, where the template only carries contents along
//! (`carries.rs`). It must never be filled with a content that the template would look at.

use super::carries::Carries;
use arc_swap::ArcSwap;
use memchr::memmem::Finder;
use std::sync::Arc;

/// Longer conversations are rendered whole.
const MESSAGES_MAX: usize = 256;
/// So many outlines are kept, of so many bytes each at most.
const OUTLINES_MAX: usize = 128;
const TEXT_MAX: usize = 1 << 16;
/// What stands for the content of the message with this index: a character of Unicode's last plane
/// but one, which is for private use.
const FIRST_PLACE: u32 = 0xF_0000;

/// A message that has a role and a text, and nothing else.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct PlainMessage<'a> {
    pub(in crate::model) role: &'a str,
    pub(in crate::model) content: &'a str,
}

/// A template's outlines. The last ones are kept; a reader takes no lock.
pub(super) struct Outlines {
    words: Vec<Finder<'static>>,
    trims: bool,
    known: ArcSwap<Vec<Arc<Outline>>>,
}

/// One: the roles, and the text between the contents.
struct Outline {
    roles: Box<[Box<str>]>,
    generation: bool,
    text: String,
    /// Where in `text` the content of which message goes.
    places: Vec<(usize, usize)>,
}

impl Outlines {
    /// `None` if what stands for a content is in the template, or one of its words in that.
    pub(super) fn of(carries: Carries, source: &str) -> Option<Outlines> {
        let taken = |text: &str| text.chars().any(|c| place_of(c).is_some());
        if taken(source) || carries.words.iter().any(|word| taken(word)) {
            return None;
        }
        let words = carries.words.iter().map(|word| Finder::new(word).into_owned()).collect();
        Some(Outlines { words, trims: carries.trims, known: ArcSwap::default() })
    }

    /// What the template makes of `messages`. `None`: it has to be asked, as `render` does where
    /// these roles have not been seen before, with contents that stand for any.
    pub(super) fn fill(
        &self,
        messages: &[PlainMessage<'_>],
        generation: bool,
        render: impl FnOnce(&[PlainMessage<'_>]) -> Option<String>,
    ) -> Option<String> {
        if messages.len() > MESSAGES_MAX || !messages.iter().all(|one| self.carries(one.content)) {
            return None;
        }
        let known = self.known.load();
        let found = known.iter().find(|outline| outline.is_of(messages, generation));
        if let Some(outline) = found {
            return Some(outline.filled(messages));
        }
        let places: Vec<String> = (0..messages.len()).filter_map(place).collect();
        let of = |(one, place): (&PlainMessage<'_>, _)| (one.role.into(), place);
        let (roles, places): (Vec<Box<str>>, Vec<&String>) =
            messages.iter().zip(&places).map(of).unzip();
        let stand_ins = roles.iter().zip(places);
        let stand_ins: Vec<PlainMessage<'_>> =
            stand_ins.map(|(role, content)| PlainMessage { role, content }).collect();
        let rendered = render(&stand_ins)?;
        let outline = Arc::new(Outline::read(roles.into(), generation, &rendered)?);
        let filled = outline.filled(messages);
        self.known.rcu(|known| {
            let kept = known.iter().skip(known.len().saturating_sub(OUTLINES_MAX - 1));
            kept.cloned().chain([Arc::clone(&outline)]).collect::<Vec<_>>()
        });
        Some(filled)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.load().len()
    }

    fn carries(&self, content: &str) -> bool {
        let whole = !self.trims || content.trim().len() == content.len();
        !content.is_empty()
            && whole
            && self.words.iter().all(|word| word.find(content.as_bytes()).is_none())
    }
}

impl Outline {
    /// `None` if it is too long to be kept, or the roles look like places.
    fn read(roles: Box<[Box<str>]>, generation: bool, rendered: &str) -> Option<Outline> {
        let like_place = roles.iter().any(|role| role.chars().any(|c| place_of(c).is_some()));
        let length = rendered.len() + roles.iter().map(|role| role.len()).sum::<usize>();
        if like_place || length > TEXT_MAX {
            return None;
        }
        let (mut text, mut places) = (String::with_capacity(rendered.len()), Vec::new());
        for c in rendered.chars() {
            match place_of(c) {
                Some(message) => places.push((text.len(), message)),
                None => text.push(c),
            }
        }
        Some(Outline { roles, generation, text, places })
    }

    fn is_of(&self, messages: &[PlainMessage<'_>], generation: bool) -> bool {
        self.generation == generation
            && self.roles.len() == messages.len()
            && self.roles.iter().zip(messages).all(|(role, message)| **role == *message.role)
    }

    fn filled(&self, messages: &[PlainMessage<'_>]) -> String {
        let contents = self.places.iter().map(|(_, message)| messages[*message].content.len());
        let mut out = String::with_capacity(self.text.len() + contents.sum::<usize>());
        let mut done = 0;
        for (at, message) in &self.places {
            out.push_str(&self.text[done..*at]);
            out.push_str(messages[*message].content);
            done = *at;
        }
        out.push_str(&self.text[done..]);
        out
    }
}

fn place(message: usize) -> Option<String> {
    char::from_u32(FIRST_PLACE + message as u32).map(String::from)
}

fn place_of(c: char) -> Option<usize> {
    let index = (c as u32).checked_sub(FIRST_PLACE)? as usize;
    (index < MESSAGES_MAX).then_some(index)
}
