//! Walks a TOML document and gathers everything that is wrong with it, each with its key and line.
//!
//! A [`Section`] is one table. Every key that is asked for is known; `finish` reports the others.

use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::value::{Read, Wrong, describe};

/// One thing that is wrong with a configuration.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Problem {
    /// Line of the file, from 1.
    pub line: usize,
    /// Full name of the key, such as `group[0].volume[1].size`; empty for a syntax error.
    pub key: String,
    /// What was found.
    pub found: String,
    /// What is allowed.
    pub allowed: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.line)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.found)?;
        if !self.allowed.is_empty() {
            write!(f, "\n    allowed: {}", self.allowed)?;
        }
        Ok(())
    }
}

/// Everything wrong that was found so far. Shared by all sections of a document.
#[derive(Debug)]
pub struct Problems {
    /// Byte offset at which each line begins.
    line_starts: Vec<usize>,
    found: RefCell<Vec<Problem>>,
}

impl Problems {
    /// For a document of this text.
    pub fn new(text: &str) -> Problems {
        let after_newlines = text.match_indices('\n').map(|(at, _)| at + 1);
        Problems {
            line_starts: std::iter::once(0).chain(after_newlines).collect(),
            found: RefCell::default(),
        }
    }

    /// Line, from 1, of a byte offset.
    pub fn line_of(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    /// Adds one.
    pub fn add(&self, line: usize, key: impl Into<String>, wrong: Wrong) {
        self.found.borrow_mut().push(Problem {
            line,
            key: key.into(),
            found: wrong.found,
            allowed: wrong.allowed,
        });
    }

    /// Adds what is wrong with a value that was read.
    pub fn at<T>(
        &self,
        located: &Located<T>,
        found: impl Into<String>,
        allowed: impl Into<String>,
    ) {
        let wrong = Wrong {
            found: found.into(),
            allowed: allowed.into(),
        };
        self.add(located.line, located.key.clone(), wrong);
    }

    /// Whether anything is wrong with this key already.
    pub fn mentions(&self, key: &str) -> bool {
        self.found.borrow().iter().any(|problem| problem.key == key)
    }

    /// All of them, in the order of the file.
    pub fn into_sorted(self) -> Vec<Problem> {
        let mut found = self.found.into_inner();
        found.sort();
        found
    }
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Line, from 1.
    pub line: usize,
    /// Full name of its key.
    pub key: String,
}

impl<T> Deref for Located<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// One table of the document.
#[derive(Debug)]
pub struct Section<'d> {
    problems: &'d Problems,
    table: &'d DeTable<'d>,
    /// Full name; empty for the document itself.
    path: String,
    /// Where missing keys are reported.
    line: usize,
    known: Vec<&'static str>,
}

impl<'d> Section<'d> {
    /// The whole document.
    pub fn root(table: &'d DeTable<'d>, problems: &'d Problems) -> Section<'d> {
        Section {
            problems,
            table,
            path: String::new(),
            line: 1,
            known: Vec::new(),
        }
    }

    /// A place in this section that stands for all of it.
    pub fn here(&self) -> Located<()> {
        Located {
            value: (),
            line: self.line,
            key: self.path.clone(),
        }
    }

    /// A key that must be there. `None` if it is missing or wrong, which is then reported.
    pub fn required<T>(
        &mut self,
        key: &'static str,
        parse: fn(&DeValue<'_>) -> Read<T>,
    ) -> Option<Located<T>> {
        let Some(value) = self.get(key) else {
            // The parser knows what is allowed; an empty list is wrong for every kind of value read here.
            let allowed = match parse(&DeValue::Array(DeArray::new())) {
                Err(wrong) => wrong.allowed,
                Ok(_) => String::new(),
            };
            self.missing(key, allowed);
            return None;
        };
        self.parse(self.path_of(key), value, parse)
    }

    /// A key that may be missing. `None` if it is, and if it is wrong, which is then reported.
    pub fn optional<T>(
        &mut self,
        key: &'static str,
        parse: fn(&DeValue<'_>) -> Read<T>,
    ) -> Option<Located<T>> {
        let value = self.get(key)?;
        self.parse(self.path_of(key), value, parse)
    }

    /// A key that must be there with one value or a list of them.
    pub fn one_or_more<T>(
        &mut self,
        key: &'static str,
        parse: fn(&DeValue<'_>) -> Read<T>,
    ) -> Vec<Located<T>> {
        let Some(DeValue::Array(list)) = self.get(key).map(Spanned::get_ref) else {
            return self.required(key, parse).into_iter().collect();
        };
        if list.is_empty() {
            let allowed = "one value or a list of one or more";
            self.report(key, Wrong::value("an empty list", allowed));
        }
        let path = self.path_of(key);
        let each = list.iter().enumerate();
        each.filter_map(|(index, value)| self.parse(format!("{path}[{index}]"), value, parse))
            .collect()
    }

    /// A table that must be there.
    pub fn section(&mut self, key: &'static str) -> Option<Section<'d>> {
        let allowed = format!("a table, [{key}]");
        let Some(value) = self.get(key) else {
            self.missing(key, allowed);
            return None;
        };
        self.enter(self.path_of(key), value, &allowed)
    }

    /// A list of tables; none at all if the key is missing.
    pub fn sections(&mut self, key: &'static str, written_as: &str) -> Vec<Section<'d>> {
        let path = self.path_of(key);
        match self.get(key).map(|value| (value, value.get_ref())) {
            None => Vec::new(),
            Some((_, DeValue::Array(list))) => {
                let each = list.iter().enumerate();
                each.filter_map(|(i, value)| self.enter(format!("{path}[{i}]"), value, written_as))
                    .collect()
            }
            Some((_, other)) => {
                self.report(key, Wrong::value(describe(other), written_as));
                Vec::new()
            }
        }
    }

    /// Reports the keys that nobody asked for.
    pub fn finish(self) {
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let mut found = "unknown key".to_owned();
            if let Some(meant) = nearest(name, &self.known) {
                found = format!("unknown key; did you mean {meant:?}?");
            }
            let wrong = Wrong {
                found,
                allowed: self.known.join(", "),
            };
            let line = self.problems.line_of(key.span().start);
            self.problems.add(line, self.path_of(name), wrong);
        }
    }

    fn get(&mut self, key: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.table.get(key)
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn parse<T>(
        &self,
        key: String,
        value: &Spanned<DeValue<'_>>,
        parse: fn(&DeValue<'_>) -> Read<T>,
    ) -> Option<Located<T>> {
        let line = self.problems.line_of(value.span().start);
        match parse(value.get_ref()) {
            Ok(value) => Some(Located { value, line, key }),
            Err(wrong) => {
                self.problems.add(line, key, wrong);
                None
            }
        }
    }

    fn enter(
        &self,
        path: String,
        value: &'d Spanned<DeValue<'d>>,
        written_as: &str,
    ) -> Option<Section<'d>> {
        let line = self.problems.line_of(value.span().start);
        match value.get_ref() {
            DeValue::Table(table) => Some(Section {
                problems: self.problems,
                table,
                path,
                line,
                known: Vec::new(),
            }),
            other => {
                let wrong = Wrong::value(describe(other), written_as);
                self.problems.add(line, path, wrong);
                None
            }
        }
    }

    fn missing(&self, key: &str, allowed: String) {
        let wrong = Wrong {
            found: "missing".to_owned(),
            allowed,
        };
        self.problems.add(self.line, self.path_of(key), wrong);
    }

    fn report(&self, key: &str, wrong: Wrong) {
        let line = self
            .table
            .get(key)
            .map_or(self.line, |value| self.problems.line_of(value.span().start));
        self.problems.add(line, self.path_of(key), wrong);
    }
}

/// The known word a slip of the fingers is nearest to, if any is near enough.
fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let slips = |known: &&&str| strsim::damerau_levenshtein(word, known);
    let near = known.iter().min_by_key(slips)?;
    (slips(&near) <= 1 + word.len() / 5).then_some(near)
}
