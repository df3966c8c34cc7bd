//! Taint of function calls, macro calls and methods.

use super::Taint::{Clean, Content, Message, Text};
use super::{Analysis, Taint};
use minijinja::machinery::ast::{Call, CallArg, CallType, Expr};

impl Analysis {
    /// `content.split(literal)`: its first and last parts equal the content. The outer `None`:
    /// another expression.
    pub(super) fn split(&mut self, expression: &Expr<'_>) -> Option<Option<Taint>> {
        let Expr::Call(call) = expression else { return None };
        let CallType::Method(of, "split") = call.identify_call() else { return None };
        Some(self.part(of, &call.args))
    }

    fn part(&mut self, of: &Expr<'_>, arguments: &[CallArg<'_>]) -> Option<Taint> {
        match (self.expression(of)?, arguments) {
            (Clean, _) => self.arguments(arguments).map(|()| Clean),
            (Content, [CallArg::Pos(literal)]) => {
                let literal = literal.as_const()?;
                self.content_literal(literal.as_str().filter(|literal| !literal.is_empty())?);
                Some(Content)
            }
            _ => None,
        }
    }

    pub(super) fn call(&mut self, call: &Call<'_>) -> Option<Taint> {
        match call.identify_call() {
            CallType::Function(name) => self.function(name, &call.args),
            CallType::Method(of, name) => self.method(of, name, &call.args),
            CallType::Object(of) => {
                self.clean_in(of)?;
                self.arguments(&call.args)?;
                Some(Clean)
            }
            CallType::Block(_) => None,
        }
    }

    fn function(&mut self, name: &str, arguments: &[CallArg<'_>]) -> Option<Taint> {
        for (at, argument) in arguments.iter().enumerate() {
            let taint = self.argument(argument)?;
            match argument {
                CallArg::Kwarg(key, _) if name == "namespace" => {
                    self.assign(&format!(".{key}"), taint)?;
                }
                // A failing template prints nothing.
                _ if name == "raise_exception" => {}
                CallArg::Pos(_) => self.assign(&format!("{name}({at})"), taint)?,
                CallArg::Kwarg(key, _) => self.assign(&format!("{name}({key})"), taint)?,
                _ => taint.clean()?,
            }
            // Only macros may take tainted arguments.
            if taint != Clean && !matches!(name, "namespace" | "raise_exception") {
                self.names.contains_key(&format!("{name}()")).then_some(())?;
            }
        }
        Some(self.name(&format!("{name}()")))
    }

    fn method(&mut self, of: &Expr<'_>, name: &str, arguments: &[CallArg<'_>]) -> Option<Taint> {
        let of = self.expression(of)?;
        let first = match arguments.first() {
            Some(CallArg::Pos(first)) => first.as_const(),
            _ => None,
        };
        let first = first.as_ref().and_then(|first| first.as_str());
        let space = first.is_some_and(|set| set.chars().all(char::is_whitespace));
        match (of, name, arguments.len()) {
            (Message, "get", 1 | 2) => {
                let mut taint = self.member(of, first?)?;
                for default in &arguments[1..] {
                    taint = taint.or(self.argument(default)?)?;
                }
                return Some(taint);
            }
            (Content | Text, "strip" | "lstrip" | "rstrip", 0)
            | (Content, "strip" | "lstrip" | "rstrip", 1)
                if arguments.is_empty() || space =>
            {
                self.dataflow.trims_content = true;
                return Some(of);
            }
            (Content, "startswith" | "endswith" | "find" | "count", 1) => {
                self.content_literal(first?);
                return Some(Clean);
            }
            (Content, "replace", 2) => {
                self.arguments(arguments)?;
                self.content_literal(first.filter(|literal| !literal.is_empty())?);
                return Some(Content);
            }
            _ => {}
        }
        of.clean()?;
        self.arguments(arguments)?;
        Some(Clean)
    }

    pub(super) fn argument(&mut self, argument: &CallArg<'_>) -> Option<Taint> {
        match argument {
            CallArg::Pos(value) | CallArg::Kwarg(_, value) => self.expression(value),
            CallArg::PosSplat(value) | CallArg::KwargSplat(value) => self.clean_in(value),
        }
    }

    pub(super) fn arguments(&mut self, arguments: &[CallArg<'_>]) -> Option<()> {
        arguments.iter().try_for_each(|argument| self.argument(argument)?.clean())
    }
}
