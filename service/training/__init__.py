"""What each worker does: rehearse, train cycle by cycle, judge, respond, save."""
