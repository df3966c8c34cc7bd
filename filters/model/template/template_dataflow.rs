//! Static taint analysis of a chat template: proves that message contents flow to the output only
//! by concatenation, apart from trimming and comparisons with string literals (recorded in
//! [`Dataflow`]). For such templates, conversations with the same roles share a skeleton
//! (`prompt_skeleton.rs`). It must never accept a template that could treat a content differently:
//! unknown constructs reject the template.
//!
//! The analysis is a flow-insensitive abstract interpretation of the syntax tree: the taint of a
//! name is the join of all its assignments, computed to a fixed point.

mod calls;

use minijinja::machinery::ast::{
    BinOpKind, CallArg, Compare, CompareOpKind, Expr, Filter, ForLoop, Macro, Stmt, UnaryOpKind,
};
use std::collections::BTreeMap;

/// Contents that a template copies unchanged. Empty contents are excluded: a template may test for
/// them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Dataflow {
    /// Literals that the template tests for or splits at; a content must contain none of them.
    pub(super) content_literals: Vec<String>,
    /// The template trims contents; a content must have no outer white space.
    pub(super) trims_content: bool,
}

/// Analyses a template; `None` if a content may influence more than its own place in the output.
pub(super) fn analyze(template: &Stmt<'_>) -> Option<Dataflow> {
    let Stmt::Template(template) = template else { return None };
    let mut analysis = Analysis::default();
    loop {
        let before = analysis.names.clone();
        analysis.statements(&template.children)?;
        if analysis.names == before {
            return Some(analysis.dataflow);
        }
    }
}

/// Taint of a value: its dependency on message contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Taint {
    /// Depends on the roles only.
    #[default]
    Clean,
    /// Exactly one content.
    Content,
    /// A text that includes contents.
    Text,
    Message,
    Messages,
}

use Taint::{Clean, Content, Message, Messages, Text};

impl Taint {
    /// Joins the taints of alternatives, of which the roles select one.
    fn or(self, other: Taint) -> Option<Taint> {
        match (self, other) {
            (a, b) if a == b => Some(a),
            (Clean, a) | (a, Clean) => Some(a),
            (Content | Text, Content | Text) => Some(Text),
            _ => None,
        }
    }

    fn clean(self) -> Option<()> {
        (self == Clean).then_some(())
    }

    /// Taint of the value when printed or concatenated.
    fn text(self) -> Option<Taint> {
        match self {
            Clean => Some(Clean),
            Content | Text => Some(Text),
            Message | Messages => None,
        }
    }
}

#[derive(Default)]
struct Analysis {
    /// Taint by name: variables, `.name` for namespace attributes, `name()` for a macro's output.
    names: BTreeMap<String, Taint>,
    dataflow: Dataflow,
    /// Taint of the output of the current macro or block.
    printed: Taint,
}

impl Analysis {
    fn name(&self, name: &str) -> Taint {
        self.names.get(name).copied().unwrap_or_default()
    }

    fn assign(&mut self, name: &str, taint: Taint) -> Option<()> {
        let joined = self.name(name).or(taint)?;
        self.names.insert(name.to_owned(), joined);
        Some(())
    }

    fn assign_to(&mut self, target: &Expr<'_>, taint: Taint) -> Option<()> {
        match target {
            Expr::Var(var) => self.assign(var.id, taint),
            Expr::GetAttr(attribute) => {
                self.expression(&attribute.expr)?.clean()?;
                self.assign(&format!(".{}", attribute.name), taint)
            }
            _ => taint.clean(),
        }
    }

    /// Records a literal that a content is compared with. The empty one is in every content.
    fn content_literal(&mut self, literal: &str) {
        if !literal.is_empty()
            && !self.dataflow.content_literals.iter().any(|known| known == literal)
        {
            self.dataflow.content_literals.push(literal.to_owned());
        }
    }

    fn statements(&mut self, statements: &[Stmt<'_>]) -> Option<()> {
        statements.iter().try_for_each(|statement| self.statement(statement))
    }

    fn statement(&mut self, statement: &Stmt<'_>) -> Option<()> {
        match statement {
            Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) => Some(()),
            Stmt::EmitExpr(emit) => {
                let taint = self.expression(&emit.expr)?.text()?;
                self.printed = self.printed.or(taint)?;
                Some(())
            }
            Stmt::ForLoop(each) => self.for_loop(each),
            Stmt::IfCond(condition) => {
                self.expression(&condition.expr)?;
                self.statements(&condition.true_body)?;
                self.statements(&condition.false_body)
            }
            Stmt::WithBlock(with) => {
                for (target, value) in &with.assignments {
                    let taint = self.expression(value)?;
                    self.assign_to(target, taint)?;
                }
                self.statements(&with.body)
            }
            Stmt::Set(set) => {
                let taint = self.expression(&set.expr)?;
                self.assign_to(&set.target, taint)
            }
            Stmt::SetBlock(set) if set.filter.is_none() => {
                let printed = self.printed_by(&set.body)?;
                self.assign_to(&set.target, printed)
            }
            Stmt::Macro(definition) => self.definition(definition),
            Stmt::Do(call) => self.call(&call.call).map(|_| ()),
            _ => None,
        }
    }

    fn printed_by(&mut self, body: &[Stmt<'_>]) -> Option<Taint> {
        let outer = std::mem::take(&mut self.printed);
        self.statements(body)?;
        Some(std::mem::replace(&mut self.printed, outer))
    }

    fn for_loop(&mut self, each: &ForLoop<'_>) -> Option<()> {
        let item = match self.expression(&each.iter)? {
            Clean => Clean,
            Messages => Message,
            _ => return None,
        };
        match (&each.target, item) {
            (Expr::Var(var), _) => self.assign(var.id, item)?,
            (_, Clean) => {}
            _ => return None,
        }
        if let Some(filter) = &each.filter_expr {
            self.expression(filter)?;
        }
        if each.recursive {
            return None;
        }
        self.statements(&each.body)?;
        self.statements(&each.else_body)
    }

    fn definition(&mut self, definition: &Macro<'_>) -> Option<()> {
        let without = definition.args.len().checked_sub(definition.defaults.len())?;
        for (argument, default) in definition.args[without..].iter().zip(&definition.defaults) {
            let taint = self.expression(default)?;
            self.assign_to(argument, taint)?;
        }
        let printed = self.printed_by(&definition.body)?;
        self.assign(&format!("{}()", definition.name), printed)?;
        // Arguments of calls are assigned to the parameters' names.
        for (at, argument) in definition.args.iter().enumerate() {
            let Expr::Var(var) = argument else { return None };
            let given = self.name(&format!("{}({at})", definition.name));
            let given = given.or(self.name(&format!("{}({})", definition.name, var.id)))?;
            self.assign(var.id, given)?;
        }
        Some(())
    }

    fn expression(&mut self, expression: &Expr<'_>) -> Option<Taint> {
        match expression {
            Expr::Const(_) => Some(Clean),
            Expr::Var(var) if var.id == "messages" => self.name(var.id).or(Messages),
            Expr::Var(var) => Some(self.name(var.id)),
            Expr::Slice(slice) => {
                for bound in [&slice.start, &slice.stop, &slice.step].into_iter().flatten() {
                    self.expression(bound)?.clean()?;
                }
                let of = self.expression(&slice.expr)?;
                matches!(of, Clean | Messages).then_some(of)
            }
            Expr::UnaryOp(unary) => match unary.op {
                // The result is known: contents are not empty, and messages exist.
                UnaryOpKind::Not => self.expression(&unary.expr).map(|_| Clean),
                UnaryOpKind::Neg => self.clean_in(&unary.expr),
            },
            Expr::BinOp(binary) => self.binary(binary.op, &binary.left, &binary.right),
            Expr::Compare(chain) => self.comparison(chain),
            Expr::IfExpr(either) => {
                self.expression(&either.test_expr)?;
                let yes = self.expression(&either.true_expr)?;
                let no = match &either.false_expr {
                    Some(no) => self.expression(no)?,
                    None => Clean,
                };
                yes.or(no)
            }
            Expr::Filter(filter) => self.filter(filter),
            Expr::Test(test) => {
                self.arguments(&test.args)?;
                // Tests of a value's type, not of its content.
                let kinds = [
                    "defined",
                    "undefined",
                    "none",
                    "string",
                    "mapping",
                    "iterable",
                    "sequence",
                    "number",
                    "integer",
                    "float",
                    "boolean",
                    "true",
                    "false",
                    "callable",
                ];
                let of = self.expression(&test.expr)?;
                (of == Clean || kinds.contains(&test.name)).then_some(Clean)
            }
            Expr::GetAttr(attribute) => {
                let of = self.expression(&attribute.expr)?;
                let of_loop = matches!(&attribute.expr, Expr::Var(var) if var.id == "loop");
                if of_loop && matches!(attribute.name, "previtem" | "nextitem") {
                    return Some(Message);
                }
                self.member(of, attribute.name)
            }
            Expr::GetItem(item) => self.item(&item.expr, &item.subscript_expr),
            Expr::Call(call) => self.call(call),
            Expr::List(list) => self.list(&list.items),
            Expr::Tuple(tuple) => self.list(&tuple.items),
            Expr::Map(map) => {
                let mut all = map.keys.iter().chain(&map.values);
                all.try_for_each(|value| self.expression(value)?.clean())?;
                Some(Clean)
            }
        }
    }

    fn clean_in(&mut self, expression: &Expr<'_>) -> Option<Taint> {
        self.expression(expression)?.clean()?;
        Some(Clean)
    }

    fn list(&mut self, items: &[Expr<'_>]) -> Option<Taint> {
        let mut list = Clean;
        for item in items {
            match self.expression(item)? {
                Clean => {}
                Message => list = Messages,
                _ => return None,
            }
        }
        Some(list)
    }

    fn binary(&mut self, op: BinOpKind, left: &Expr<'_>, right: &Expr<'_>) -> Option<Taint> {
        let (one, other) = (self.expression(left)?, self.expression(right)?);
        match (op, one, other) {
            (BinOpKind::Eq, ..) => self.compare(CompareOpKind::Eq, (left, one), (right, other)),
            (BinOpKind::Ne, ..) => self.compare(CompareOpKind::Ne, (left, one), (right, other)),
            (BinOpKind::In, ..) => self.compare(CompareOpKind::In, (left, one), (right, other)),
            (_, Clean, Clean) => Some(Clean),
            // The result is one of the operands, or their truth value.
            (BinOpKind::ScAnd | BinOpKind::ScOr, ..) => one.or(other),
            (BinOpKind::Add, Messages, Messages | Clean) => Some(Messages),
            (BinOpKind::Add, Clean, Messages) => Some(Messages),
            (BinOpKind::Add | BinOpKind::Concat, ..) => one.text()?.or(other.text()?),
            _ => None,
        }
    }

    fn comparison(&mut self, chain: &Compare<'_>) -> Option<Taint> {
        let mut left = (&chain.expr, self.expression(&chain.expr)?);
        for step in &chain.ops {
            // Each operand is analysed once; twice per level would be exponential in the depth.
            let right = (&step.expr, self.expression(&step.expr)?);
            self.compare(step.op, left, right)?;
            left = right;
        }
        Some(Clean)
    }

    fn compare(
        &mut self,
        op: CompareOpKind,
        (left, left_taint): (&Expr<'_>, Taint),
        (right, right_taint): (&Expr<'_>, Taint),
    ) -> Option<Taint> {
        use CompareOpKind::{Eq, In, Ne, NotIn};
        match (op, left_taint, right_taint) {
            (_, Clean, Clean) => {}
            (Eq | Ne, Content, Clean) => self.literals_of(right)?,
            (Eq | Ne, Clean, Content) => self.literals_of(left)?,
            // A literal is searched in a content.
            (In | NotIn, Clean, Content) => {
                let literal = left.as_const()?;
                self.content_literal(literal.as_str()?);
            }
            // A content is compared with several literals.
            (In | NotIn, Content, Clean) if matches!(right, Expr::List(_) | Expr::Tuple(_)) => {
                self.literals_of(right)?;
            }
            _ => return None,
        }
        Some(Clean)
    }

    /// Records the literals of a constant, or of a list of them.
    fn literals_of(&mut self, constant: &Expr<'_>) -> Option<()> {
        if let Expr::List(list) = constant {
            return list.items.iter().try_for_each(|item| self.literals_of(item));
        }
        if let Expr::Tuple(tuple) = constant {
            return tuple.items.iter().try_for_each(|item| self.literals_of(item));
        }
        let constant = constant.as_const()?;
        if let Some(literal) = constant.as_str() {
            self.content_literal(literal);
        }
        Some(())
    }

    fn filter(&mut self, filter: &Filter<'_>) -> Option<Taint> {
        let base = filter.expr.as_ref()?;
        // The first or last part after a split at a literal that the content does not contain.
        if matches!(filter.name, "first" | "last")
            && let Some(split) = self.split(base)
        {
            return split;
        }
        let of = self.expression(base)?;
        if filter.name == "default" || filter.name == "d" {
            // A content is defined and not empty.
            let mut taint = of;
            for argument in &filter.args {
                taint = taint.or(self.argument(argument)?)?;
            }
            return Some(taint);
        }
        self.arguments(&filter.args)?;
        let by_role = || match filter.args.first() {
            Some(CallArg::Pos(by)) => by.as_const().is_some_and(|by| by.as_str() == Some("role")),
            Some(CallArg::Kwarg("attribute", by)) => {
                by.as_const().is_some_and(|by| by.as_str() == Some("role"))
            }
            _ => false,
        };
        match (of, filter.name) {
            (Clean, _) => Some(Clean),
            (Content | Text, "trim") if filter.args.is_empty() => {
                self.dataflow.trims_content = true;
                Some(of)
            }
            (Content | Text, "string" | "safe") => Some(of),
            (Messages, "length" | "count") => Some(Clean),
            (Messages, "first" | "last") => Some(Message),
            (Messages, "list" | "reverse") => Some(Messages),
            (Messages, "selectattr" | "rejectattr") if by_role() => Some(Messages),
            (Messages, "map") if by_role() => Some(Clean),
            _ => None,
        }
    }

    fn member(&self, of: Taint, name: &str) -> Option<Taint> {
        match of {
            Clean => Some(self.name(&format!(".{name}"))),
            Message if name == "content" => Some(Content),
            Message => Some(Clean),
            _ => None,
        }
    }

    fn item(&mut self, of: &Expr<'_>, subscript: &Expr<'_>) -> Option<Taint> {
        let constant = subscript.as_const();
        let end =
            constant.as_ref().and_then(|at| at.as_i64()).is_some_and(|at| at == 0 || at == -1);
        if end && let Some(split) = self.split(of) {
            return split;
        }
        let of = self.expression(of)?;
        self.clean_in(subscript)?;
        match (of, constant.as_ref().and_then(|name| name.as_str())) {
            (Clean | Message, Some(name)) => self.member(of, name),
            (Messages, None) => Some(Message),
            // A computed member name: no namespace attribute may be tainted.
            (Clean, None) => {
                let mut members = self.names.iter().filter(|(name, _)| name.starts_with('.'));
                members.all(|(_, taint)| *taint == Clean).then_some(Clean)
            }
            _ => None,
        }
    }
}
